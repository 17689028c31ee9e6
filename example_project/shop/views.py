from __future__ import annotations

import asyncio
import json
import logging
import time

from django.core.cache import cache
from django.db import transaction
from django.db.models import F, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from prometheus_client import Counter

from example_project.shop.models import Order, Product, Shelf

logger = logging.getLogger(__name__)

# Any prometheus_client metric is summed over all processes, wherever it is defined.
items_sold = Counter("shop_items_sold", "Items sold.", ["shelf"])


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    """Show every shelf: three queries and a template."""
    shelves = Shelf.objects.prefetch_related("products")
    sold = Order.objects.aggregate(items=Sum("quantity"))["items"] or 0
    return render(request, "shop/index.html", {"shelves": shelves, "sold": sold})


@require_GET
def product(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one product, whose description is kept in the cache."""
    item = get_object_or_404(Product.objects.select_related("shelf"), slug=slug)
    description = cache.get_or_set(f"description:{slug}", lambda: f"The finest {item.name} of the shelf.", 60)
    logger.info("product shown", extra={"product": slug})
    return render(request, "shop/product.html", {"product": item, "description": description})


@require_GET
def products(request: HttpRequest) -> JsonResponse:
    """List what is in stock, as JSON."""
    rows = Product.objects.filter(in_stock__gt=0).values(
        "slug", "name", "price", "in_stock", shelf_name=F("shelf__name")
    )
    return JsonResponse({"products": list(rows)})


@csrf_exempt
@require_POST
def order(request: HttpRequest) -> JsonResponse:
    """Place an order from a JSON object with `product` (a slug) and `quantity`."""
    try:
        wanted = json.loads(request.body)
        slug, quantity = str(wanted["product"]), int(wanted["quantity"])
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"error": "Expected an object with product and quantity."}, status=400)
    if quantity < 1:
        return JsonResponse({"error": "Quantity should be at least 1."}, status=400)
    item = get_object_or_404(Product.objects.select_related("shelf"), slug=slug)
    with transaction.atomic():
        taken = Product.objects.filter(pk=item.pk, in_stock__gte=quantity).update(in_stock=F("in_stock") - quantity)
        if not taken:
            logger.warning("out of stock", extra={"product": slug, "quantity": quantity})
            return JsonResponse({"error": "Out of stock."}, status=409)
        placed = Order.objects.create(product=item, quantity=quantity)
    items_sold.labels(item.shelf.slug).inc(quantity)
    logger.info("order placed", extra={"order": placed.pk, "product": slug, "quantity": quantity})
    return JsonResponse({"order": placed.pk}, status=201)


async def stock(request: HttpRequest) -> JsonResponse:
    """Count the stock of all shelves, asynchronously."""
    shelves, total = await asyncio.gather(Shelf.objects.acount(), Product.objects.aaggregate(items=Sum("in_stock")))
    logger.info("stock counted")
    return JsonResponse({"shelves": shelves, "items": total["items"]})


@require_GET
def slow(request: HttpRequest) -> HttpResponse:
    """Take longer than a second, as TRACES.KEEP_SLOWER_THAN calls slow."""
    time.sleep(1.1)
    return HttpResponse("At last.\n", content_type="text/plain")


@require_GET
def broken(request: HttpRequest) -> HttpResponse:
    """Fail, as views do."""
    price = Product.objects.values_list("price", flat=True).first() or 0
    return HttpResponse(price / 0)


@require_GET
def healthy(request: HttpRequest) -> HttpResponse:
    """Answer a health check, which leaves no line, span or sample."""
    return HttpResponse("ok\n", content_type="text/plain")
