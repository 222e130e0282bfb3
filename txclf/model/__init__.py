"""Networks as plain `nn.Module`s, without Ray and Lightning."""
