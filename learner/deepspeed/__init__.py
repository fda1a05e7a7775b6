"""DeepSpeed: the engine around the model, its gradient sums, learning rate and compiled op."""
