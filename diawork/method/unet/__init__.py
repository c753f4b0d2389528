"""The library's UNet re-stated: frozen for dissolving, trained for pretraining."""
