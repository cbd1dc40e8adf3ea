"""The stand-in is a real S3 service, and leaves nothing behind."""

from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from tests.stand_ins.swift import Swift
from weighbridge.core.settings import Settings


@pytest.mark.slow
def test_it_serves_refuses_wrong_checksums_and_ends_with_its_block(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with Swift(tmp_path, Settings().cache) as swift:
        swift.create_bucket("bucket")
        client = swift.client()
        client.put_object(Bucket="bucket", Key="k", Body=b"hello")
        assert client.get_object(Bucket="bucket", Key="k")["Body"].read() == b"hello"
        with pytest.raises(ClientError, match=r"(?i)digest|checksum|crc"):
            client.put_object(Bucket="bucket", Key="bad", Body=b"hello", ChecksumCRC32="AAAAAA==")
        servers = set(psutil.Process().children(recursive=True)) - before
        assert len(servers) == 4
    assert not any(server.is_running() for server in servers)
