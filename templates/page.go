package templates

import (
	"bytes"
	"fmt"
	"html/template"
)

// StatusPage is what a person wants to see of a cluster, as one page that
// needs nothing else: no script, no other file, no network.
type StatusPage struct {
	Cluster   string
	ClusterID string
	Time      string // when the members were asked
	Healthy   bool
	Summary   string // one sentence
	Problems  []string
	Members   []PageMember
	// Certificates are in the order in which they are to be read.
	Certificates []PageCertificate
	// Plan is what apply would change now, one line each; PlanSummary says how
	// much that is, or why nobody knows.
	Plan        []string
	PlanSummary string
	// Backups are on the workstation, the newest first.
	Backups   []PageBackup
	BackupDir string
	Version   string // muster's
}

// PageMember is one row of the members.
type PageMember struct {
	Name, ID, Endpoint, Version, Role, Health string
	Healthy                                   bool
	DB, Term, Index                           string
	Certificate                               string
}

// PageCertificate is one row of the certificates.
type PageCertificate struct {
	Name, Where, Expires, Left string
	// Share of its life that is left, in percent.
	Share int
	// State is "ok", "soon" or "bad".
	State    string
	Problems string
}

// PageBackup is one row of the backups.
type PageBackup struct {
	File, Time, Revision, Keys, Size, From string
}

// Render returns the page as HTML.
func (p StatusPage) Render() ([]byte, error) {
	t, err := template.New("status.html.tmpl").ParseFS(files, "status.html.tmpl")
	if err != nil {
		return nil, fmt.Errorf("parse the status page: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("fill the status page: %w", err)
	}
	return out.Bytes(), nil
}
