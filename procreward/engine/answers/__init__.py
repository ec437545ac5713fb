"""What a model says: greedy answers with drafts, labels and numbers as trees."""
