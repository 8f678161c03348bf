"""norm "exact": the model's own LayerNorm or RMSNorm stays where it is."""

from distill.variants.registry import Variant, add

EXACT_NORM = add(Variant("norm", "exact", None))
