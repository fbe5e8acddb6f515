"""The schema `orcheo_dispatch`, and our objects on the API's table."""
