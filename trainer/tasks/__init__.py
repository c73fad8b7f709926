"""What a trained model is asked to do."""
