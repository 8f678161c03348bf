"""Templates of the report and the model card. A package so that the wheel carries them."""
