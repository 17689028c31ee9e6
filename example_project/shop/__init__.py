"""Shelves, products and orders: pages, a JSON API, and views that are asynchronous, slow or broken on purpose."""
