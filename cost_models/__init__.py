"""What secure computations cost: exact counts by running the engine on meta tensors, seconds by calibrated profiles.

cost = predict(model, example_inputs, protocol="dealer2pc")
seconds(cost, network="wan", device="cpu").total
"""

from cost_models.calibrate import calibrate
from cost_models.cost import Cost, Phase
from cost_models.predict import predict
from cost_models.profile_files import Device, Network, ProfileError
from cost_models.profile_files import device as device_profile
from cost_models.profile_files import names as profile_names
from cost_models.profile_files import network as network_profile
from cost_models.seconds import Seconds, seconds

__all__ = [
    "Cost",
    "Device",
    "Network",
    "Phase",
    "ProfileError",
    "Seconds",
    "calibrate",
    "device_profile",
    "network_profile",
    "predict",
    "profile_names",
    "seconds",
]
