"""activation "exact": the model's own module (GELU, SiLU, ReLU, …) stays where it is."""

from distill.variants.registry import Variant, add

EXACT_ACTIVATION = add(Variant("activation", "exact", None))
