"""The method: DDPM, dissolver, views, encoder, loss, training, scoring."""
