package step

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"muster/provision/remote"
)

// recordPath is where a host keeps its Record.
const recordPath = "/etc/muster/cluster.json"

// Record is what a host remembers about the cluster it was made a member of.
// It protects the data directory: data is never given to another cluster, and
// a member whose data is gone never founds a cluster of its own.
type Record struct {
	Cluster string `json:"cluster"`
	Token   string `json:"token"`
	Member  string `json:"member"`
	DataDir string `json:"dataDir"`
	// CA is the SHA-256 of the CA's certificate in DER, hexadecimal.
	CA string `json:"ca"`
	// ClusterID and MemberID are hexadecimal, as etcd prints them. They are
	// empty until the cluster was verified for the first time.
	ClusterID string `json:"clusterID,omitempty"`
	MemberID  string `json:"memberID,omitempty"`
}

// parseRecord reads the record's one line; an empty one is the zero Record.
func parseRecord(line string) (Record, error) {
	var r Record
	if strings.TrimSpace(line) == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("%s is not muster's record: %w; move the file away if it is not needed", recordPath, err)
	}
	return r, nil
}

// Remember writes the host's record before its member is started for the
// first time.
func Remember(ctx context.Context, h *Host) error {
	ca, err := fingerprint(h.run.Bundle.CA)
	if err != nil {
		return err
	}
	want := h.Facts.Record // keeps the IDs
	want.Cluster, want.Token = h.run.Cluster.Name, h.run.Cluster.Token
	want.Member, want.DataDir, want.CA = h.Name, h.Want.Member.DataDir, ca
	return writeRecord(ctx, h, want, "recorded the cluster in "+recordPath)
}

// RememberIDs adds the IDs of a verified cluster to the records.
func rememberIDs(ctx context.Context, h *Host, clusterID, memberID uint64) error {
	want := h.Facts.Record
	want.ClusterID, want.MemberID = fmt.Sprintf("%x", clusterID), fmt.Sprintf("%x", memberID)
	return writeRecord(ctx, h, want, "recorded the cluster and member ID in "+recordPath)
}

func writeRecord(ctx context.Context, h *Host, want Record, sentence string) error {
	if want == h.Facts.Record {
		return nil
	}
	line, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("%s: write the record: %w", h.Name, err)
	}
	err = h.Change(ctx, sentence, func(ctx context.Context) error {
		return h.Remote.WriteFile(ctx, remote.File{Path: recordPath, Mode: 0o644, Owner: "root", Group: "root"}, append(line, '\n'))
	})
	if err == nil {
		h.Facts.Record = want
	}
	return err
}

// fingerprint is the SHA-256 of a PEM certificate's DER form.
func fingerprint(cert []byte) (string, error) {
	block, _ := pem.Decode(cert)
	if block == nil {
		return "", errors.New("the CA certificate is not PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}
