"""A process that delivers webhooks to the loopback until it is killed: `python -m tests.integration.stores.deliverer
URL`. It says `ready`, and starts at the first line that it is sent."""

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

CONFIG = WebhooksConfig(allowed_networks=(ip_network("127.0.0.0/8"),), timeout_s=1.0, retry_s=(0.05,) * 50)
LEASE_MARGIN_S = 2.0


async def deliver(url: str) -> None:
    async with open_database(url) as database, system_resolver() as resolve:
        sender = HttpSender(address_rules(CONFIG), resolve, timeout_s=CONFIG.timeout_s)
        delivery = WebhookDelivery(SqlOutbox(database), sender, SECRETS, CONFIG, lease_margin_s=LEASE_MARGIN_S)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        async with delivery.running():
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1]))
