"""What secure computations cost: exact counts by running the engine on meta tensors, seconds by calibrated profiles.

cost = predict(model, example_inputs, protocol="dealer2pc")
seconds(cost, network="wan").total          on this machine, measured once (device="auto"); device="cpu" is the shipped profile
"""

from cost_models import peers
from cost_models.calibrate import calibrate
from cost_models.cost import Cost, Phase
from cost_models.generation import Generation, predict_generation
from cost_models.machine import device as device_profile
from cost_models.predict import predict
from cost_models.prices import Charge, Money, money
from cost_models.profile_files import AUTO, Device, Network, Prices, ProfileError
from cost_models.profile_files import names as profile_names
from cost_models.profile_files import network as network_profile
from cost_models.profile_files import prices as price_profile
from cost_models.seconds import Seconds, seconds
from cost_models.workload import Work, works

__all__ = [
    "AUTO",
    "Charge",
    "Cost",
    "Device",
    "Generation",
    "Money",
    "Network",
    "Phase",
    "Prices",
    "ProfileError",
    "Seconds",
    "Work",
    "calibrate",
    "device_profile",
    "money",
    "network_profile",
    "peers",
    "predict",
    "predict_generation",
    "price_profile",
    "profile_names",
    "seconds",
    "works",
]
