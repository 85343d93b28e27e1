package machine

import (
	"encoding/binary"
	"fmt"
)

// batchVersion is the first byte of a payload. A member that meets a version
// it does not know stops, because guessing would make it differ from the
// others.
const batchVersion = 1

const batchHeaderLen = 1 + 8

// EncodeBatch makes the payload of one raft entry: what proposer, the member
// that led when the entry was made, had to propose. Each request is an encoded
// etcdserverpb.InternalRaftRequest. A new leader proposes a batch without
// requests.
func EncodeBatch(proposer uint64, requests [][]byte) []byte {
	size := batchHeaderLen
	for _, r := range requests {
		size += binary.MaxVarintLen64 + len(r)
	}
	b := make([]byte, 0, size)
	b = append(b, batchVersion)
	b = binary.BigEndian.AppendUint64(b, proposer)
	for _, r := range requests {
		b = binary.AppendUvarint(b, uint64(len(r)))
		b = append(b, r...)
	}
	return b
}

// BatchProposer returns who proposed a batch, without decoding its requests.
// ok is false when payload is not a batch.
func BatchProposer(payload []byte) (proposer uint64, ok bool) {
	if len(payload) < batchHeaderLen || payload[0] != batchVersion {
		return 0, false
	}
	return binary.BigEndian.Uint64(payload[1:]), true
}

// DecodeBatch is the inverse of EncodeBatch. The requests are parts of
// payload. The error is ErrBadBatch.
func DecodeBatch(payload []byte) (proposer uint64, requests [][]byte, err error) {
	if len(payload) < batchHeaderLen {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrBadBatch, len(payload))
	}
	if payload[0] != batchVersion {
		return 0, nil, fmt.Errorf("%w: version %d, this program reads version %d; upgrade this member", ErrBadBatch, payload[0], batchVersion)
	}
	proposer = binary.BigEndian.Uint64(payload[1:])
	for rest := payload[batchHeaderLen:]; len(rest) > 0; {
		size, n := binary.Uvarint(rest)
		if n <= 0 {
			return 0, nil, fmt.Errorf("%w: request %d has no length", ErrBadBatch, len(requests))
		}
		rest = rest[n:]
		if size > uint64(len(rest)) {
			return 0, nil, fmt.Errorf("%w: request %d has %d bytes of %d", ErrBadBatch, len(requests), len(rest), size)
		}
		requests = append(requests, rest[:size:size])
		rest = rest[size:]
	}
	return proposer, requests, nil
}
