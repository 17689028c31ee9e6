"""A small shop that django_obs watches."""
