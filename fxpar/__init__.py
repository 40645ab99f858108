"""fxpar splits unmodified PyTorch models over device meshes."""
