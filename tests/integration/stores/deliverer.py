"""A process that delivers webhooks to the loopback until it is killed: `python -m tests.integration.stores.deliverer
URL TIMEOUT_S MARGIN_S`. It says `ready`, and starts at the first line that it is sent."""

import asyncio
import sys
from ipaddress import ip_network

from serve_app.config import WebhooksConfig
from serve_app.stores.database import open_database
from serve_app.stores.webhook_queue import SqlOutbox
from serve_app.use_cases.webhook_delivery import WebhookDelivery
from serve_app.use_cases.webhooks import address_rules
from serve_app.webhook_sender import HttpSender, system_resolver
from tests.integration.stores.webhook_rows import SECRETS

OPEN = WebhooksConfig(allowed_networks=(ip_network("127.0.0.0/8"),), retry_s=(0.05,) * 50)


async def deliver(url: str, timeout_s: float, margin_s: float) -> None:
    config = OPEN.model_copy(update={"timeout_s": timeout_s})
    async with open_database(url) as database, system_resolver() as resolve:
        sender = HttpSender(address_rules(config), resolve, timeout_s=timeout_s)
        delivery = WebhookDelivery(SqlOutbox(database), sender, SECRETS, config, lease_margin_s=margin_s)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        async with delivery.running():
            await asyncio.Event().wait()


if __name__ == "__main__":
    url, *seconds = sys.argv[1:]
    asyncio.run(deliver(url, *map(float, seconds)))
