"""The schema `orcheo_dispatch`, and what is ours in the API's tables."""
