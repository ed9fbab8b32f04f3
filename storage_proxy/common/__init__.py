"""What both programs speak: tokens, wire models, names, errors. Imports nothing else of the house."""
