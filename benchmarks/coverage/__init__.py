"""The survey of transformers' model classes: small models of every class, and whether the engine is right about them."""
