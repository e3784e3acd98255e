"""What methods cost: step times, first steps, memory, beside stock Keras."""
