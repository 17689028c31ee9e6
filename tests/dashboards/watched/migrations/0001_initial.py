from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Note",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("text", models.CharField(max_length=20)),
            ],
        ),
    )
