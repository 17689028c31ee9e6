from __future__ import annotations

from django.urls import path

from example_project.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.index, name="index"),
    path("products/<slug:slug>/", views.product, name="product"),
    path("api/products/", views.products, name="products"),
    path("api/orders/", views.order, name="order"),
    path("stock/", views.stock, name="stock"),
    path("slow/", views.slow, name="slow"),
    path("broken/", views.broken, name="broken"),
    path("healthz", views.healthy, name="healthy"),
]
