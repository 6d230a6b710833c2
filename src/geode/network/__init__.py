"""The decoder in Keras 3: one definition for JAX, PyTorch and TensorFlow. The only room that imports keras."""
