package templates

import (
	"strings"
	"testing"
)

func examplePage() StatusPage {
	return StatusPage{
		Cluster: "prod", ClusterID: "cdf818194e3a8c32", Time: "2026-01-31 15:04:05 UTC", Summary: "1 of 2 members healthy, a leads",
		Problems: []string{`b: <script>alert("no")</script>`},
		Members: []PageMember{
			{Name: "a", ID: "8e9e05c52164694d", Endpoint: "https://10.0.0.1:2379", Version: "3.7.3", Role: "leader", Health: "ok", Healthy: true, DB: "5.0 KiB", Term: "2", Index: "10", Certificate: "2027-01-31 (365d)"},
			{Name: "b", ID: "-", Endpoint: "https://10.0.0.2:2379", Version: "-", Role: "-", Health: "failing", DB: "-", Term: "-", Index: "-", Certificate: "-"},
		},
		Certificates: []PageCertificate{
			{Name: "ca etcd-ca", Where: "workstation, 2 hosts", Expires: "2036-01-31", Left: "3652 days", Share: 99, State: "ok"},
			{Name: "server a", Where: "workstation, 1 host", Expires: "2026-02-01", Left: "1 day", Share: 1, State: "soon", Problems: "expires soon"},
		},
		Plan: []string{"b: start service musterd.service"}, PlanSummary: "1 change on 1 host",
		BackupDir: "prod-backups", Version: "v1",
	}
}

// The golden file is a page to open in a browser.
func TestStatusPage(t *testing.T) {
	text, err := examplePage().Render()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "testdata/status.html", text)
	for _, foreign := range []string{"<script", "http://", "src=", "@import", "url("} {
		if strings.Contains(string(text), foreign) {
			t.Errorf("the page contains %q", foreign)
		}
	}
	page := examplePage()
	page.Healthy, page.Problems, page.Certificates = true, nil, nil
	page.Backups = []PageBackup{{File: "prod-20260131T150405Z-r7.db", Time: "2026-01-31 15:04:05 UTC", Revision: "7", Keys: "1", Size: "20 KiB", From: "a"}}
	if text, err = page.Render(); err != nil {
		t.Fatal(err)
	}
	for want, times := range map[string]int{"class=\"problems\"": 0, "Nothing is known of them.": 1, "prod-20260131T150405Z-r7.db": 1, "There are none in": 0} {
		if n := strings.Count(string(text), want); n != times {
			t.Errorf("%q is there %d times, not %d", want, n, times)
		}
	}
}
