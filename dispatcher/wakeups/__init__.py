"""What wakes a dispatcher besides Beat's ticks: the API's pushes and notifications of Postgres."""
