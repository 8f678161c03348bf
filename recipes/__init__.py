"""What a recipe is, the stages that run it, the run directory that survives a kill, and the command line."""
