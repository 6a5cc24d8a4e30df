"""The CloudFormation template: checked by its linter, and applied to an emulated AWS, which enforces its rights."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cfnlint import lint
from cfnlint.decode.cfn_yaml import loads
from moto import mock_aws
from moto.core import enable_iam_authentication

from deployments.checkpoints.opening import open_artifacts
from deployments.config import CheckpointConfig
from deployments.errors import ObjectStoreError
from infra.generate import INFRA
from tests.unit.infra.files import manifests

TEMPLATE = INFRA / "aws/tritext.yaml"
TEXT = TEMPLATE.read_text("utf-8")
RESOURCES: Mapping[str, Any] = loads(TEXT)["Resources"]
REGION = "eu-central-1"
BUCKET = "objects-of-a-test"

# What the emulation does not make: the bucket's policy, and secrets.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        ec2 = client("ec2")
        [vpc] = ec2.describe_vpcs()["Vpcs"]
        subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
        parameters = {"BucketName": BUCKET, "VpcId": vpc["VpcId"], "SubnetIds": ",".join(subnets)}
        client("cloudformation").create_stack(
            StackName="tritext",
            TemplateBody=TEXT,
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )
        yield


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
    groups = {group["GroupName"]: group for group in client("ec2").describe_security_groups()["SecurityGroups"]}
    nodes, database = groups["tritext-nodes"], groups["tritext-database"]
    for group, port in ((nodes, None), (database, 5432)):
        [rule] = group["IpPermissions"]
        assert rule.get("FromPort") == port
        assert rule["IpRanges"] == rule["Ipv6Ranges"] == []
        assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [nodes["GroupId"]]


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


def test_the_head_ends_its_own_machines_only_and_gives_them_no_other_roles() -> None:
    statements = RESOURCES["StartMachines"]["Properties"]["PolicyDocument"]["Statement"]
    [ends] = [each for each in statements if each["Action"] == "ec2:TerminateInstances"]
    assert ends["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": {"Ref": "Name"}}}
    [gives] = [each for each in statements if each["Action"] == "iam:PassRole"]
    assert "HeadRole" not in json.dumps(gives["Resource"])


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
