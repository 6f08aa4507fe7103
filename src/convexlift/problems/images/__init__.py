"""Images: their files, an autoencoder, its latents."""
