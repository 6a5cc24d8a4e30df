"""The CloudFormation template: checked by its linter, and applied to an emulated AWS, which enforces its rights."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cfnlint import lint
from cfnlint.decode.cfn_yaml import loads
from moto import mock_aws
from moto.core import enable_iam_authentication
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
)

from deployments.checkpoints.opening import open_artifacts
from deployments.config import CheckpointConfig
from deployments.errors import ObjectStoreError
from infra.generate import INFRA
from tests.unit.infra.files import documents, manifests

TEMPLATE = INFRA / "aws/tritext.yaml"
TEXT = TEMPLATE.read_text("utf-8")
RESOURCES: Mapping[str, Any] = loads(TEXT)["Resources"]
REGION = "eu-central-1"
BUCKET = "objects-of-a-test"
OWNER = f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}"
"""The key under which IAM has the cluster that a machine belongs to."""

# What the emulation does not make: the bucket's policy, and secrets.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


@pytest.fixture
def stack(aws: None) -> None:
    del aws
    make_stack()


def make_stack(**more: str) -> None:
    """With the parameters that have no default, and these."""
    ec2 = client("ec2")
    [vpc] = ec2.describe_vpcs()["Vpcs"]
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    parameters = {"BucketName": BUCKET, "VpcId": vpc["VpcId"], "SubnetIds": ",".join(subnets), **more}
    client("cloudformation").create_stack(
        StackName="tritext",
        TemplateBody=TEXT,
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )


def client(service: str, **arguments: str) -> Any:
    return boto3.client(service, region_name=REGION, **arguments)


def test_the_linter_has_nothing_to_say() -> None:
    assert [str(match) for match in lint(TEXT, regions=[REGION])] == []


@pytest.mark.usefixtures("stack")
def test_the_bucket_is_encrypted() -> None:
    [rule] = client("s3").get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_the_bucket_is_closed_and_keeps_nothing_for_ever() -> None:
    bucket = RESOURCES["Bucket"]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["VersioningConfiguration"]["Status"] == "Enabled"
    rules = bucket["LifecycleConfiguration"]["Rules"]
    assert [rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] for rule in rules[:1]] == [1]
    assert rules[1]["NoncurrentVersionExpiration"]["NoncurrentDays"] == {"Ref": "KeepDeletedDays"}
    [statement] = RESOURCES["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("role", "reads", "writes_blobs", "writes_manifests", "deletes"),
    [
        ("serving", True, True, False, False),
        ("training", True, True, True, False),
        ("dispatching", True, True, True, True),
        ("head", False, False, False, False),
    ],
)
def test_each_role_has_the_rights_of_its_work_and_no_others(
    role: str, reads: bool, writes_blobs: bool, writes_manifests: bool, deletes: bool
) -> None:
    blob, manifest, model = "blobs/sha256/00", "manifests/sha256/00.json", "models/m/config.json"
    for key in (blob, manifest, model):
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"0")
    s3 = client("s3", **credentials(role))
    with enable_iam_authentication():
        assert is_allowed(s3.get_object, Key=blob) == reads
        assert is_allowed(s3.get_object, Key=model) == reads
        assert is_allowed(s3.list_objects_v2) == reads
        assert is_allowed(s3.put_object, Key=blob, Body=b"1") == writes_blobs
        assert is_allowed(s3.put_object, Key=manifest, Body=b"1") == writes_manifests
        assert is_allowed(s3.put_object, Key="probe/00", Body=b"1") == writes_blobs
        assert is_allowed(s3.delete_object, Key="probe/00") == writes_blobs
        assert not is_allowed(s3.put_object, Key=model, Body=b"1")
        assert is_allowed(s3.delete_object, Key=blob) == deletes
        assert is_allowed(s3.delete_object, Key=manifest) == deletes
        assert not is_allowed(s3.delete_object, Key=model)


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("role", "publishes", "collects"),
    [("serving", False, False), ("training", True, False), ("dispatching", True, True)],
)
def test_each_role_s_rights_are_enough_for_what_its_deployments_ask_of_the_store(
    role: str, publishes: bool, collects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials(role).items():
        monkeypatch.setenv(name.upper(), value)
    config = CheckpointConfig(url=f"s3://{BUCKET}", region=REGION, part_bytes=5 * 1024 * 1024)
    store = open_artifacts(config, tmp_path)
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(11 * 1024 * 1024))  # in three parts
    small.write_bytes(b"{}")
    with enable_iam_authentication():
        assert store.put_blob(large) == store.put_blob(large)
        digest = store.put_blob(b"a document")
        assert store.read_blob(digest, max_bytes=100) == b"a document"
        with nullcontext() if publishes else pytest.raises(ObjectStoreError, match="AccessDenied"):
            published = store.publish({"adapter_config.json": small}, {"kind": "adapter"})
            assert store.read_manifest(published.digest).about["kind"] == "adapter"
        with nullcontext() if collects else pytest.raises(ObjectStoreError, match="AccessDenied"):
            assert store.collect_garbage(manifests=(), blobs=(), now=time.time() + 10 * config.grace_s).num_blobs == 3


@pytest.mark.usefixtures("stack")
def test_nodes_are_open_to_each_other_and_the_database_to_nodes() -> None:
    nodes, database = security_group("tritext-nodes"), security_group("tritext-database")
    assert open_to(nodes) == {(nodes["GroupId"], "-1", None)}
    assert open_to(database) == {(nodes["GroupId"], "tcp", 5432)}


@pytest.mark.usefixtures("aws")
def test_nodes_are_open_to_a_load_balancer_and_to_operators_that_are_named_each_at_one_port() -> None:
    balancer = security_group("default")["GroupId"]
    make_stack(ClientsSecurityGroupId=balancer, AdminCidr="10.1.0.0/16")
    nodes, database = security_group("tritext-nodes"), security_group("tritext-database")
    assert open_to(nodes) == {(nodes["GroupId"], "-1", None), (balancer, "tcp", 8000), ("10.1.0.0/16", "tcp", 22)}
    assert open_to(database) == {(nodes["GroupId"], "tcp", 5432)}


@pytest.mark.usefixtures("stack")
def test_the_database_is_private_encrypted_and_backed_up() -> None:
    [database] = client("rds").describe_db_instances()["DBInstances"]
    assert database["Engine"] == "postgres"
    assert database["StorageEncrypted"]
    assert database["MultiAZ"]
    assert not database["PubliclyAccessible"]
    assert database["BackupRetentionPeriod"] == 14
    assert RESOURCES["Database"]["Properties"]["DeletionProtection"] is True
    assert RESOURCES["Database"]["DeletionPolicy"] == "Snapshot"


def test_secrets_are_made_by_aws_and_stand_in_no_file() -> None:
    secrets = {name: each for name, each in RESOURCES.items() if each["Type"] == "AWS::SecretsManager::Secret"}
    names = {name: each["Properties"]["Name"]["Fn::Sub"] for name, each in secrets.items()}
    assert set(names.values()) == {"${Name}/key-pepper", "${Name}/ray-token", "${Name}/database"}
    for each in secrets.values():
        assert "SecretString" not in each["Properties"]
        assert each["Properties"]["GenerateSecretString"]["PasswordLength"] >= 32
    password = RESOURCES["Database"]["Properties"]["MasterUserPassword"]["Fn::Sub"]
    assert password == "{{resolve:secretsmanager:${DatabaseSecret}:SecretString:password}}"
    assert secrets["PepperSecret"]["DeletionPolicy"] == "Retain"


def test_the_service_accounts_of_kubernetes_get_the_roles_of_the_same_names() -> None:
    pods = [each["Properties"] for each in RESOURCES.values() if each["Type"] == "AWS::EKS::PodIdentityAssociation"]
    accounts = {each["metadata"]["name"] for each in manifests() if each["kind"] == "ServiceAccount"}
    assert {each["ServiceAccount"] for each in pods} == accounts
    for each in pods:
        role = each["RoleArn"]["Fn::GetAtt"]
        name = RESOURCES[role[0] if isinstance(role, list) else role.partition(".")[0]]["Properties"]["RoleName"]
        assert name["Fn::Sub"].removeprefix("${Name}-") == each["ServiceAccount"].removeprefix("tritext-")


@pytest.mark.usefixtures("stack")
def test_the_head_ends_its_own_machines_only_and_makes_none_of_others_its_own() -> None:
    own, another, untagged = {OWNER: "tritext"}, {OWNER: "another"}, dict[str, str]()
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert head_may(action, own)
        assert not head_may(action, another)
        assert not head_may(action, untagged)
    assert head_may("ec2:CreateTags", {"ec2:CreateAction": "RunInstances"})
    assert not head_may("ec2:CreateTags", {"ec2:CreateAction": "CreateVolume"})


def test_the_head_gives_its_machines_no_rights_of_its_own() -> None:
    statements = RESOURCES["StartMachines"]["Properties"]["PolicyDocument"]["Statement"]
    [gives] = [each for each in statements if each["Action"] == "iam:PassRole"]
    assert "HeadRole" not in json.dumps(gives["Resource"])


@pytest.mark.usefixtures("stack")
def test_the_head_may_do_what_ray_does_with_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
    [launcher] = documents(INFRA / "ray/aws.yaml")
    ec2 = client("ec2")
    node = launcher["available_node_types"]["generating"]["node_config"] | {
        "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
        "SubnetIds": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
    }
    provider = node_provider.AWSNodeProvider(launcher["provider"], launcher["cluster_name"])
    calls: list[tuple[str, dict[str, Any]]] = []
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register(
            "provide-client-params.ec2", lambda model, params, **_: calls.append((model.name, params))
        )

    provider.create_node(node, {TAG_RAY_NODE_KIND: NODE_KIND_WORKER}, 1)
    [machine] = provider.non_terminated_nodes({})
    provider.set_node_tags(machine, {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE})
    provider.terminate_nodes([machine])

    assert {name for name, _ in calls} == {"RunInstances", "DescribeInstances", "CreateTags", "TerminateInstances"}
    own = {OWNER: launcher["cluster_name"]}
    for name, params in calls:
        assert head_may(f"ec2:{name}", own)
        if name == "RunInstances":
            [tagged] = params["TagSpecifications"]
            assert tagged["ResourceType"] == "instance"
            assert {"Key": TAG_RAY_CLUSTER_NAME, "Value": launcher["cluster_name"]} in tagged["Tags"]
            assert head_may("ec2:CreateTags", {"ec2:CreateAction": name})
        elif name != "DescribeInstances":
            assert params.get("Resources", params.get("InstanceIds")) == [machine]


def head_may(action: str, context: Mapping[str, str]) -> bool:
    """Whether the head's policy, of which the emulation does not heed the conditions, grants this about a machine.

    context: the values of IAM's condition keys.
    """
    policy = client("iam").get_role_policy(RoleName="tritext-head", PolicyName="start-machines")["PolicyDocument"]
    granted = False
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {"StringEquals": {}})
        assert conditions.keys() == {"StringEquals"}
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        granted |= any(fnmatchcase(action, pattern) for pattern in actions) and (
            conditions["StringEquals"].items() <= context.items()
        )
    return granted


def security_group(name: str) -> dict[str, Any]:
    [found] = client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])[
        "SecurityGroups"
    ]
    return found


def open_to(group: Mapping[str, Any]) -> set[tuple[str, str, int | None]]:
    """Which address or group may reach it by which protocol at which port."""
    found = set()
    for rule in group["IpPermissions"]:
        assert rule.get("FromPort") == rule.get("ToPort")
        groups = [pair["GroupId"] for pair in rule["UserIdGroupPairs"]]
        addresses = [each["CidrIp"] for each in rule["IpRanges"]] + [each["CidrIpv6"] for each in rule["Ipv6Ranges"]]
        found |= {(source, rule["IpProtocol"], rule.get("FromPort")) for source in groups + addresses}
    return found


def credentials(role: str) -> dict[str, str]:
    """Of a process on a machine with this role, under the names that boto3 gives them."""
    arn = client("iam").get_role(RoleName=f"tritext-{role}")["Role"]["Arn"]
    found = client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    return {
        "aws_access_key_id": found["AccessKeyId"],
        "aws_secret_access_key": found["SecretAccessKey"],
        "aws_session_token": found["SessionToken"],
    }


def is_allowed(call: Any, **arguments: Any) -> bool:
    try:
        call(Bucket=BUCKET, **arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied"
        return False
    return True
