"""Files of the outside world: downloads, archives, pictures, tokenizers."""
