"""The filter language: text to a tree and back."""
