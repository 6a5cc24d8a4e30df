"""The API reference as a page of plain HTML, made on the server from the OpenAPI document."""
