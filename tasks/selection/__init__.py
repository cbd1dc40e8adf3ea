"""The rules of `select`: limits, the objective, the finalist, and the champion's place."""
