package observed

import (
	"encoding/json"
	"fmt"
	"strings"
)

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
	// Snapshot is the checksum of the snapshot that the cluster was restored
	// from, in hexadecimal; empty when it never was.
	Snapshot string `json:"snapshot,omitempty"`
}

// parseRecord reads the record's one line; an empty one is the zero Record.
func parseRecord(line string) (Record, error) {
	var r Record
	if strings.TrimSpace(line) == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("the host's cluster.json is not muster's record: %w; move the file away if it is not needed", err)
	}
	return r, nil
}
