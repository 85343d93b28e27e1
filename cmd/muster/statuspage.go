package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/snapshot"
	"muster/templates"
)

// pageBackups is how many backups a page shows.
const pageBackups = 10

// writePage writes the status, the certificates and the backups as one page.
func (a *app) writePage(ctx context.Context, cluster *inventory.Cluster, status *provision.Status) error {
	now := time.Now()
	page := templates.StatusPage{
		Cluster: status.Cluster, ClusterID: orDash(status.ClusterID), Healthy: status.Healthy, Summary: summary(status),
		Time: now.UTC().Format("2006-01-02 15:04:05 UTC"), BackupDir: backupDir(cluster), Version: thisBuild().Version,
	}
	if status.Problem != "" {
		page.Problems = append(page.Problems, status.Problem)
	}
	for _, m := range status.Members {
		page.Members = append(page.Members, pageMember(m, now))
		if m.Problem != "" {
			page.Problems = append(page.Problems, m.Name+": "+m.Problem)
		}
	}
	check, err := provision.CheckCertificates(ctx, cluster, a.options(ctx, operationFlags{}, nil))
	if err != nil {
		page.Problems = append(page.Problems, err.Error())
	} else {
		for _, group := range grouped(check.Certificates) {
			page.Certificates = append(page.Certificates, pageCertificate(group, now))
		}
	}
	if p, err := provision.Plan(ctx, cluster, a.options(ctx, operationFlags{}, nil)); err != nil {
		page.PlanSummary = "What apply would change is not known: " + err.Error()
	} else {
		page.PlanSummary = "muster apply now: " + p.Summary()
		for _, c := range p.Changes {
			page.Plan = append(page.Plan, c.String())
		}
	}
	backups, err := snapshot.List(page.BackupDir, cluster.Name)
	if err != nil {
		a.log.Debug("no backups to show", "error", err)
	}
	for _, m := range backups[:min(pageBackups, len(backups))] {
		page.Backups = append(page.Backups, templates.PageBackup{
			File: m.File, Time: m.Time.UTC().Format("2006-01-02 15:04:05 UTC"), Revision: fmt.Sprint(m.Revision), Keys: fmt.Sprint(m.Keys),
			Size: humanize.IBytes(uint64(max(0, m.Size))), From: m.Member, //nolint:gosec // not negative
		})
	}
	text, err := page.Render()
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

func summary(s *provision.Status) string {
	healthy, leader := 0, "no leader"
	for _, m := range s.Members {
		if m.Healthy {
			healthy++
		}
		if m.Leader {
			leader = m.Name + " leads"
		}
	}
	return fmt.Sprintf("%d of %s healthy, %s", healthy, count(len(s.Members), "member"), leader)
}

func pageMember(m provision.MemberStatus, now time.Time) templates.PageMember {
	row := memberRow(m)
	cell := func(i int) string { return fmt.Sprint(row[i]) }
	return templates.PageMember{
		Name: m.Name, Healthy: m.Healthy, ID: cell(1), Endpoint: cell(2), Version: cell(3), Role: cell(4), DB: cell(5),
		Term: cell(6), Index: cell(7), Health: cell(8), Certificate: expires(m.CertificateExpires, now),
	}
}

const (
	day = 24 * time.Hour
	// soonDays is when a certificate is worth a colour.
	soonDays = 30
)

func pageCertificate(group []provision.FoundCertificate, now time.Time) templates.PageCertificate {
	c := group[0]
	name := string(c.Role)
	for _, more := range []string{c.Host, strings.TrimPrefix(c.Subject, "CN=")} {
		if more != "" && !strings.Contains(name, more) {
			name += " " + more
		}
	}
	row := templates.PageCertificate{Name: name, Where: strings.Replace(places(group), "here", "workstation", 1), Expires: "-", Left: "-", State: "ok"}
	if !c.NotAfter.IsZero() {
		left := c.NotAfter.Sub(now)
		row.Expires, row.Left = c.NotAfter.Format(time.DateOnly), count(int(left.Round(day)/day), "day")
		if life := c.NotAfter.Sub(c.NotBefore); life > 0 {
			row.Share = int(100 * max(0, min(1, left.Seconds()/life.Seconds())))
		}
	}
	if c.DaysLeft < soonDays {
		row.State, row.Problems = "soon", "expires soon"
	}
	var problems []string
	for _, one := range group {
		problems = append(problems, one.Problems...)
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		row.State, row.Problems = "bad", strings.Join(slices.Compact(problems), "; ")
	}
	return row
}
