"""Other programs' files of weights, read as data and written: PyTorch's two formats and safetensors."""
