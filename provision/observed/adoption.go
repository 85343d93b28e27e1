package observed

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Adoption is what a host remembers of the etcd that was there before muster
// took it over: how it is started again, and how far the taking over has come.
type Adoption struct {
	Installer string `json:"installer"`
	// Unit ran the old member, or the kubelet did, by the manifest that is at
	// Kept now and was at Manifest.
	Unit     string `json:"unit,omitempty"`
	Manifest string `json:"manifest,omitempty"`
	Kept     string `json:"kept,omitempty"`
	// DataDir is the old member's and Owner whom it belonged to, USER:GROUP.
	DataDir string `json:"dataDir"`
	Owner   string `json:"owner"`
	// InPlace says that the new member goes on with that data. Otherwise it
	// began with the snapshot of that checksum, in hexadecimal, at Revision.
	InPlace  bool   `json:"inPlace,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Revision int64  `json:"revision,omitempty"`
	// Done says that the new member has proved itself.
	Done bool `json:"done,omitempty"`
	// Member is the old member's name, and Version that of its server.
	Member  string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	// Returning is the checksum of the snapshot with which the old member goes
	// on when it is given back, in hexadecimal; Returned says that it has it.
	Returning string `json:"returning,omitempty"`
	Returned  bool   `json:"returned,omitempty"`
}

// Begun says that the host's old member was stopped, or is about to be, and
// the new one has not proved itself.
func (a Adoption) Begun() bool { return a != (Adoption{}) && !a.Done }

func parseAdoption(line string) (Adoption, error) {
	var a Adoption
	if strings.TrimSpace(line) == "" {
		return a, nil
	}
	if err := json.Unmarshal([]byte(line), &a); err != nil {
		return a, fmt.Errorf("the host's adopted.json is not muster's record of an adoption: %w; move the file away if none is under way", err)
	}
	return a, nil
}
