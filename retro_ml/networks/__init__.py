"""The agents' networks in plain PyTorch, as training and play share them."""
