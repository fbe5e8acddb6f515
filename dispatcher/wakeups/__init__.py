"""Wakes a dispatcher, in addition to Beat's ticks: on the API's pushes and on notifications of Postgres."""
