"""A model runs once without data, and its calls are noted, checked and played back."""
