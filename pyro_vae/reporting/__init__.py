"""Pictures of a trained VAE: `views` computes images, `figures` draws them with matplotlib."""
