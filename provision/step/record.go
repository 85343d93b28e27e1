package step

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"muster/provision/observed"
	"muster/provision/remote"
)

// Remember writes the host's record before its member is started for the
// first time.
func Remember(ctx context.Context, h *Host) error {
	ca, err := fingerprints(h.run.Bundle.CA)
	if err != nil {
		return err
	}
	return writeRecord(ctx, h, h.record(ca[0]), "recorded the cluster in "+h.Want.Paths.Record)
}

// record is what the host should remember. It keeps the IDs it knows.
func (h *Host) record(ca string) observed.Record {
	want := h.Facts.Record
	want.Cluster, want.Token = h.run.Cluster.Name, h.run.Cluster.Token
	want.Member, want.DataDir, want.CA = h.Name, h.Want.Member.DataDir, ca
	return want
}

// rememberIDs adds the IDs of a verified cluster to the records.
func rememberIDs(ctx context.Context, h *Host, clusterID, memberID uint64) error {
	want := h.Facts.Record
	want.ClusterID, want.MemberID = fmt.Sprintf("%x", clusterID), fmt.Sprintf("%x", memberID)
	return writeRecord(ctx, h, want, "recorded the cluster and member ID in "+h.Want.Paths.Record)
}

func writeRecord(ctx context.Context, h *Host, want observed.Record, sentence string) error {
	if want == h.Facts.Record {
		return nil
	}
	line, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("%s: write the record: %w", h.Name, err)
	}
	err = h.Change(ctx, sentence, func(ctx context.Context) error {
		return h.Remote.WriteFile(ctx, remote.File{Path: h.Want.Paths.Record, Mode: 0o644, Owner: "root", Group: "root"}, append(line, '\n'))
	})
	if err == nil {
		h.Facts.Record = want
	}
	return err
}

// fingerprints are the SHA-256 of the DER form of each certificate in a bundle
// in PEM, of which there must be one.
func fingerprints(bundle []byte) ([]string, error) {
	var sums []string
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		sum := sha256.Sum256(block.Bytes)
		sums = append(sums, hex.EncodeToString(sum[:]))
	}
	if len(sums) == 0 {
		return nil, errors.New("the CA certificate is not PEM")
	}
	return sums, nil
}
