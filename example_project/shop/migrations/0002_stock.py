"""Fill the shelves, so that `migrate` leaves a shop that sells."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from django.db import migrations
from django.utils.text import slugify

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor

SHELVES = {
    "Bakery": {"Brown loaf": "3.20", "Poppy bagel": "1.10", "Raisin bun": "1.40"},
    "Dairy": {"Goat cheese": "4.80", "Oat yoghurt": "1.90", "Salted butter": "2.60"},
    "Garden": {"Basil pot": "2.20", "Leek": "0.90", "Red onion": "0.40", "White radish": "1.30"},
}


def fill(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    shelf_model, product_model = apps.get_model("shop", "Shelf"), apps.get_model("shop", "Product")
    for shelf_name, prices in SHELVES.items():
        shelf = shelf_model.objects.create(name=shelf_name, slug=slugify(shelf_name))
        product_model.objects.bulk_create(
            product_model(shelf=shelf, name=name, slug=slugify(name), price=Decimal(price), in_stock=1000)
            for name, price in prices.items()
        )


class Migration(migrations.Migration):
    dependencies = (("shop", "0001_initial"),)
    operations = (migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),)
