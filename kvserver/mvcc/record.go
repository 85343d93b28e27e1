package mvcc

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// Record is one stored version of a key, read in place: Key and Value belong
// to the store and are valid only as long as the function that handed out the
// record says.
type Record struct {
	Key, Value     []byte
	CreateRevision int64
	ModRevision    int64
	Version        int64
	Lease          int64
}

// KeyValue copies the record.
func (r Record) KeyValue() *mvccpb.KeyValue {
	// One allocation for both; the cap keeps an append to Key out of Value.
	buf := make([]byte, 0, len(r.Key)+len(r.Value))
	buf = append(append(buf, r.Key...), r.Value...)
	kv := &mvccpb.KeyValue{
		Key:            buf[:len(r.Key):len(r.Key)],
		CreateRevision: r.CreateRevision,
		ModRevision:    r.ModRevision,
		Version:        r.Version,
		Lease:          r.Lease,
	}
	if len(r.Value) > 0 {
		kv.Value = buf[len(r.Key):]
	}
	return kv
}

// Field numbers of mvccpb.KeyValue (kv.proto). A record is stored in that
// encoding, so that it can be handed to a client as it is.
const (
	fieldKey            protowire.Number = 1
	fieldCreateRevision protowire.Number = 2
	fieldModRevision    protowire.Number = 3
	fieldVersion        protowire.Number = 4
	fieldValue          protowire.Number = 5
	fieldLease          protowire.Number = 6
)

func (r Record) size() int {
	return sizeBytes(fieldKey, r.Key) +
		sizeInt(fieldCreateRevision, r.CreateRevision) +
		sizeInt(fieldModRevision, r.ModRevision) +
		sizeInt(fieldVersion, r.Version) +
		sizeBytes(fieldValue, r.Value) +
		sizeInt(fieldLease, r.Lease)
}

// append encodes the record as protobuf does: fields in order, zero values
// left out. It appends exactly size bytes.
func (r Record) append(dst []byte) []byte {
	dst = appendBytes(dst, fieldKey, r.Key)
	dst = appendInt(dst, fieldCreateRevision, r.CreateRevision)
	dst = appendInt(dst, fieldModRevision, r.ModRevision)
	dst = appendInt(dst, fieldVersion, r.Version)
	dst = appendBytes(dst, fieldValue, r.Value)
	return appendInt(dst, fieldLease, r.Lease)
}

func sizeBytes(num protowire.Number, v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return protowire.SizeTag(num) + protowire.SizeBytes(len(v))
}

func sizeInt(num protowire.Number, v int64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(num) + protowire.SizeVarint(uint64(v))
}

func appendBytes(dst []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendBytes(dst, v)
}

func appendInt(dst []byte, num protowire.Number, v int64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.VarintType)
	return protowire.AppendVarint(dst, uint64(v))
}

// decodeRecord reads a stored KeyValue without copying it.
func decodeRecord(raw []byte) (Record, error) {
	var r Record
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return Record{}, damagedRecord(n)
		}
		raw = raw[n:]
		switch {
		case typ == protowire.BytesType && (num == fieldKey || num == fieldValue):
			var v []byte
			if v, n = protowire.ConsumeBytes(raw); n < 0 {
				return Record{}, damagedRecord(n)
			}
			if num == fieldKey {
				r.Key = v
			} else {
				r.Value = v
			}
		case typ == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(raw); n < 0 {
				return Record{}, damagedRecord(n)
			}
			switch num {
			case fieldCreateRevision:
				r.CreateRevision = int64(v)
			case fieldModRevision:
				r.ModRevision = int64(v)
			case fieldVersion:
				r.Version = int64(v)
			case fieldLease:
				r.Lease = int64(v)
			}
		default:
			if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
				return Record{}, damagedRecord(n)
			}
		}
		raw = raw[n:]
	}
	return r, nil
}

func damagedRecord(n int) error {
	return fmt.Errorf("%w: key-value record: %w", ErrDamaged, protowire.ParseError(n))
}
