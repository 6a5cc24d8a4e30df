"""Webhooks: `/v1/aitextgen/webhooks`. Every answer is about the caller's account alone."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.dialects.aitextgen import webhooks_documents as documents
from serve_app.dialects.aitextgen.webhooks_wire import (
    NewWebhook,
    SecretRotation,
    WebhookChange,
    delivery_object,
    to_change,
    webhook_object,
)
from serve_app.http.authentication import authenticate
from serve_app.http.idempotency import idempotent
from serve_app.http.json_text import parse_object
from serve_app.http.query import parse_query
from serve_app.http.request_body import check_content_type, read_bounded, read_json
from serve_app.http.resources import PageQuery, json_answer, page_object, path_id
from serve_app.http.wire_model import parse
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect, Scope

_PATH = "/v1/aitextgen/webhooks"


def add_routes(routes: APIRouter, services: Services) -> None:
    http, webhooks = services.config.http, services.webhooks

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.AITEXTGEN, scope=Scope.FINE_TUNE)

    once = idempotent(services, identify, to_the_end=True)

    @once
    async def create_webhook(request: Request) -> Response:
        """Has events sent to a URL. Deliveries are signed by `secret`, as Standard Webhooks describes; it is in this
        answer only."""
        caller = await identify(request)
        data = await read_json(
            request, max_bytes=http.max_body_bytes, max_depth=http.max_json_depth, require_json_content_type=True
        )
        body = parse(NewWebhook, data)
        await services.admission.count(caller)
        endpoint, secret = await webhooks.create(caller.account, body.url, body.events)
        payload = {**webhook_object(endpoint), "secret": secret}
        return json_answer(payload, status=201, location=f"{_PATH}/{endpoint.id}")

    async def list_webhooks(request: Request) -> Response:
        """The account's webhooks, the newest first."""
        caller = await identify(request)
        query = parse_query(PageQuery, request)
        found = await webhooks.list(caller.account, after=query.after, limit=query.limit + 1)
        return json_answer(page_object(found, query.limit, webhook_object, lambda endpoint: endpoint.id))

    async def get_webhook(request: Request) -> Response:
        """One webhook: where it sends what, and how it does."""
        caller = await identify(request)
        return json_answer(webhook_object(await webhooks.get(caller.account, path_id(request, "webhook"))))

    async def change_webhook(request: Request) -> Response:
        """Changes where events are sent and which, or whether; also enables a webhook that was disabled because it
        failed for too long or answered 410."""
        caller = await identify(request)
        webhook = path_id(request, "webhook")
        data = await read_json(
            request, max_bytes=http.max_body_bytes, max_depth=http.max_json_depth, require_json_content_type=True
        )
        change = to_change(parse(WebhookChange, data))
        return json_answer(webhook_object(await webhooks.change(caller.account, webhook, change)))

    async def delete_webhook(request: Request) -> Response:
        """Deletes a webhook; nothing more is sent to it."""
        caller = await identify(request)
        webhook = path_id(request, "webhook")
        await webhooks.delete(caller.account, webhook)
        return json_answer({"object": "webhook", "id": webhook, "deleted": True})

    @once
    async def rotate_secret(request: Request) -> Response:
        """Makes a new secret, which is in this answer only. For `overlap_s` the old one signs beside it, so that the
        receiver can change over in between. The body may be left out."""
        caller = await identify(request)
        webhook = path_id(request, "webhook")
        check_content_type(request)
        text = await read_bounded(request, http.max_body_bytes)
        body = parse(SecretRotation, parse_object(text, max_depth=http.max_json_depth) if text else {})
        await services.admission.count(caller)
        endpoint, secret = await webhooks.rotate(caller.account, webhook, overlap_s=body.overlap_s)
        return json_answer({**webhook_object(endpoint), "secret": secret}, status=201)

    @once
    async def test_webhook(request: Request) -> Response:
        """Sends an event `webhook.test` now, whatever the webhook subscribed to. Where that fails, it is not tried
        again; the delivery tells what came of it."""
        caller = await identify(request)
        webhook = path_id(request, "webhook")
        await services.admission.count(caller)
        delivery = await webhooks.test(caller.account, webhook)
        return json_answer(
            delivery_object(delivery), status=201, location=f"{_PATH}/{webhook}/deliveries/{delivery.id}"
        )

    async def list_deliveries(request: Request) -> Response:
        """What was sent to a webhook and what is to be sent, the newest first, with the last response to each; for 30
        days."""
        caller = await identify(request)
        webhook = path_id(request, "webhook")
        query = parse_query(PageQuery, request)
        found = await webhooks.deliveries(caller.account, webhook, after=query.after, limit=query.limit + 1)
        return json_answer(page_object(found, query.limit, delivery_object, lambda delivery: delivery.id))

    async def get_delivery(request: Request) -> Response:
        """One delivery."""
        caller = await identify(request)
        webhook, delivery = path_id(request, "webhook"), path_id(request, "delivery")
        return json_answer(delivery_object(await webhooks.delivery(caller.account, webhook, delivery)))

    @once
    async def replay_delivery(request: Request) -> Response:
        """Sends the same event again, now, under the same id; also one that was delivered, or whose next attempt is
        hours away."""
        caller = await identify(request)
        webhook, delivery = path_id(request, "webhook"), path_id(request, "delivery")
        await services.admission.count(caller)
        return json_answer(delivery_object(await webhooks.replay(caller.account, webhook, delivery)))

    one, deliveries = f"{_PATH}/{{webhook}}", f"{_PATH}/{{webhook}}/deliveries"
    routes.add_api_route(f"{_PATH}/create", create_webhook, methods=["POST"], **documents.CREATE)
    routes.add_api_route(_PATH, list_webhooks, methods=["GET"], **documents.LIST)
    routes.add_api_route(one, get_webhook, methods=["GET"], **documents.GET)
    routes.add_api_route(one, change_webhook, methods=["PATCH"], **documents.CHANGE)
    routes.add_api_route(one, delete_webhook, methods=["DELETE"], **documents.DELETE)
    routes.add_api_route(f"{one}/rotate-secret", rotate_secret, methods=["POST"], **documents.ROTATE)
    routes.add_api_route(f"{one}/test", test_webhook, methods=["POST"], **documents.TEST)
    routes.add_api_route(deliveries, list_deliveries, methods=["GET"], **documents.DELIVERIES)
    routes.add_api_route(f"{deliveries}/{{delivery}}", get_delivery, methods=["GET"], **documents.DELIVERY)
    routes.add_api_route(f"{deliveries}/{{delivery}}/replay", replay_delivery, methods=["POST"], **documents.REPLAY)
