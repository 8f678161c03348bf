"""MPC-friendly variants of Hugging Face models: find sites, operate, calibrate, distil, export.

teacher = distill.finetune("checkpoint", splits, distill.FinetuneConfig(), "run/teacher")
calibration = distill.calibrate(teacher, distill.batches(splits.train, tokenizer, limit=512))
architecture = distill.Architecture.uniform(teacher, {"softmax": "power4", "activation": "quad_channel"})
student = distill.apply(teacher, architecture, calibration)
distill.train(student, teacher, splits.train, splits.validation, distill.DistillConfig(), tokenizer,
"run/student") distill.export(student, tokenizer, "run/model", card="…")
"""

from distill import data, variants
from distill.architecture import Architecture
from distill.batching import Tokens, batches, tokenize
from distill.cache import TeacherCache
from distill.calibration import Calibration, calibrate
from distill.checkpoints import restore, save
from distill.data import Splits, TaskConfig
from distill.distill_config import DistillConfig
from distill.errors import (
    CalibrationMissing,
    DataError,
    DistillError,
    OutOfRange,
    UnknownSite,
    UnknownVariant,
    UnsupportedModel,
)
from distill.export import export
from distill.finetuning import FinetuneConfig, finetune
from distill.metrics import accuracy, agreement, divergence, evaluate, kl, labels_of, score
from distill.sites import Site, find_sites
from distill.surgery import apply, architecture_of
from distill.train import TrainResult, train

load = data.load

__all__ = [
    "Architecture",
    "Calibration",
    "CalibrationMissing",
    "DataError",
    "DistillConfig",
    "DistillError",
    "FinetuneConfig",
    "OutOfRange",
    "Site",
    "Splits",
    "TaskConfig",
    "TeacherCache",
    "Tokens",
    "TrainResult",
    "UnknownSite",
    "UnknownVariant",
    "UnsupportedModel",
    "accuracy",
    "agreement",
    "apply",
    "architecture_of",
    "batches",
    "calibrate",
    "data",
    "divergence",
    "evaluate",
    "export",
    "find_sites",
    "finetune",
    "kl",
    "labels_of",
    "load",
    "restore",
    "save",
    "score",
    "tokenize",
    "train",
    "variants",
]
