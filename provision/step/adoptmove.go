package step

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/observed"
	"muster/provision/snapshot"
)

// seal is the alarm that is raised while data is moved: with it every member
// refuses every write, from one entry of the log on, and goes on reading. It is
// in the snapshot like everything else, so the new members refuse writes too
// until it is lifted, and until then nothing is lost by going back. No member has
// the ID, which spells muster.
const (
	sealID    = 0x6d7573746572
	sealAlarm = pb.AlarmType_CORRUPT
)

// isSeal says whether an alarm in a member's status is the seal.
func isSeal(alarm string) bool { return strings.Contains(alarm, strconv.FormatUint(sealID, 10)) }

func isSealed(alarms []string) bool {
	for _, a := range alarms {
		if isSeal(a) {
			return true
		}
	}
	return false
}

// setSeal raises or lifts the seal through any member.
func (c *conversation) setSeal(ctx context.Context, action pb.AlarmRequest_AlarmAction) error {
	return c.until(ctx, "", func(ctx context.Context) error {
		failed := []error{}
		for _, h := range c.Hosts {
			if !knock(ctx, h, h.Want.Member.ClientURL) {
				continue
			}
			client, err := c.client(h, h.Want.Member.ClientURL)
			if err == nil {
				call, cancel := context.WithTimeout(ctx, callTimeout)
				_, err = pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(call, &pb.AlarmRequest{Action: action, MemberID: sealID, Alarm: sealAlarm})
				cancel()
			}
			if err == nil {
				return nil
			}
			failed = append(failed, fmt.Errorf("%s: %w", h.Name, err))
		}
		if len(failed) == 0 {
			return errNoMember
		}
		return errors.Join(failed...)
	})
}

// moveDir is where the snapshots of a move are kept on the workstation.
func (r *Run) moveDir() string {
	return filepath.Join(filepath.Dir(filepath.Clean(r.Cluster.PKI.Dir)), r.Cluster.Name+"-backups", "adopt")
}

// Resume finds the snapshot of an earlier run that has stopped members, or was
// about to. When the old members serve again and take writes, that snapshot is
// of no use any more.
func (a *Adopt) Resume(ctx context.Context, r *Run) error {
	sum := ""
	for _, h := range r.Hosts {
		if h.Facts.Adoption.Begun() {
			sum = h.Facts.Adoption.Snapshot
		}
		if h.Facts.Adoption.Done { // the new members take writes
			sum = h.Facts.Adoption.Snapshot
			break
		}
	}
	if sum == "" {
		return nil
	}
	if a.moved(r) == 0 {
		for _, v := range r.roster.views {
			if !isSealed(v.Errors) {
				return a.forget(ctx, r)
			}
		}
	}
	path := filepath.Join(r.moveDir(), sum+".db")
	contents, err := snapshot.Check(ctx, path)
	if err != nil {
		return &localError{fmt.Errorf("an adoption was interrupted, and its snapshot is needed: %w; bring the file back, or go back to the old members: muster adopt --undo", err)}
	}
	if contents.SHA256 != sum {
		return &localError{fmt.Errorf("%s is not the snapshot that was moved; bring the file back, or go back to the old members: muster adopt --undo", path)}
	}
	return a.moves(path, contents)
}

// moved is how many hosts have begun with the snapshot.
func (a *Adopt) moved(r *Run) int {
	return len(r.only(func(h *Host) bool { return h.Facts.Restoring.Moved || h.Facts.Adoption.Done }))
}

// forget drops the snapshot of an earlier run from the records of the hosts.
func (a *Adopt) forget(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		adoption := h.Facts.Adoption
		adoption.Snapshot, adoption.Revision = "", 0
		if adoption == (observed.Adoption{}) {
			return nil
		}
		if err := writeAdoption(ctx, h, adoption, "forgot the snapshot of an earlier run: the old members have taken writes since"); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

func (a *Adopt) moves(path string, contents snapshot.Contents) error {
	sum, err := snapshot.FileSum(path)
	if err != nil {
		return &localError{err}
	}
	a.toMove = &Restore{File: path, FileSum: sum, Contents: contents, Saved: contents, Adopts: true}
	return nil
}

// Rehearse saves a snapshot while the members serve, to see that they can be
// read, and to have one from before anything was done.
func (a *Adopt) Rehearse(ctx context.Context, r *Run) error {
	if a.toMove != nil {
		return nil
	}
	_, err := TakeSnapshot(ctx, r, snapshot.Place{Dir: r.snapshotDir(), Keep: snapshotsKept})
	return err
}

// Seal has all members refuse writes and saves the snapshot that is moved: every
// write that was acknowledged is in it.
func (a *Adopt) Seal(ctx context.Context, r *Run) error {
	if a.toMove != nil {
		return nil
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	path, contents, err := a.sealAndSave(ctx, r, c)
	if err != nil {
		return err
	}
	return a.moves(path, contents)
}

// sealAndSave has all members refuse writes and saves a snapshot that has every
// write; the file is named by its checksum, by which an interrupted run finds it
// again.
func (a *Adopt) sealAndSave(ctx context.Context, r *Run, c *conversation) (path string, contents snapshot.Contents, err error) {
	a.sealedAt = time.Now()
	if err := c.setSeal(ctx, pb.AlarmRequest_ACTIVATE); err != nil {
		return "", contents, fmt.Errorf("have the members refuse writes: %w", err)
	}
	r.change("seal", "the members refuse writes from now on")
	saved, err := TakeSnapshot(ctx, r, snapshot.Place{Dir: r.moveDir(), File: "moving-" + time.Now().UTC().Format(asideTime) + ".db"})
	if err != nil {
		return "", contents, err
	}
	first, err := c.stateOf(ctx, saved.Revision, r.Hosts...)
	if err != nil {
		return "", contents, err
	}
	if first.Revision != saved.Revision {
		return "", contents, fmt.Errorf("the snapshot ends at revision %d and the members are at %d, although they refuse writes", saved.Revision, first.Revision)
	}
	path = filepath.Join(r.moveDir(), saved.SHA256+".db")
	if err := os.Rename(saved.Path, path); err != nil {
		return "", contents, &localError{err}
	}
	return path, saved.Contents, nil
}

// Note records on the host what its new member begins with, before the old one
// is stopped.
func (a *Adopt) Note(ctx context.Context, h *Host) error {
	adoption := a.adoption(h)
	if adoption.Done {
		return nil
	}
	adoption.Snapshot, adoption.Revision = a.toMove.Contents.SHA256, a.toMove.Contents.Revision
	return writeAdoption(ctx, h, adoption, "recorded how the old etcd is started, and the snapshot, in "+h.Want.Paths.Adoption)
}

// Upload places the snapshot on the host. The members go on meanwhile.
func (a *Adopt) Upload(ctx context.Context, h *Host) error { return a.toMove.Upload(ctx, h) }

// PutAside has the new member begin with the snapshot, see Restore.
func (a *Adopt) PutAside(ctx context.Context, h *Host) error { return a.toMove.PutAside(ctx, h) }

// Tidy removes what only the move needed.
func (a *Adopt) Tidy(ctx context.Context, h *Host) error { return a.toMove.Tidy(ctx, h) }

// Stop stops the old members, the leader last: it would wait for one of the
// others to take the lead over, and gives up at once where nobody is left.
func (a *Adopt) Stop(ctx context.Context, r *Run) error {
	var leader, others []*Host
	for _, h := range r.Hosts {
		if h.Facts.Adoption.Done || h.Facts.Restoring.Moved {
			continue
		}
		if s, err := h.status(ctx); err == nil && s.Leader == s.Header.MemberId {
			leader = append(leader, h)
		} else {
			others = append(others, h)
		}
	}
	for _, hosts := range [][]*Host{others, leader} {
		if err := onEach(r, hosts, func(h *Host) error { return h.stopOld(ctx, h.Facts.Adoption) }); err != nil {
			return err
		}
	}
	return nil
}

// Compare proves, while writes are still refused, that every new member has
// what the snapshot has: the revision, the number of keys, and one hash of all of
// it.
func (a *Adopt) Compare(ctx context.Context, r *Run) error {
	if slices.ContainsFunc(r.Hosts, func(h *Host) bool { return h.Facts.Adoption.Done }) {
		return nil // an earlier run has, and writes are taken since
	}
	return a.compare(ctx, r, "the new members are at revision %d and have %d keys, as the old ones")
}

func (a *Adopt) compare(ctx context.Context, r *Run, outcome string) error {
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	want := a.toMove.Contents
	hashes := map[uint32]string{}
	for _, h := range r.Hosts {
		is, err := c.stateOf(ctx, want.Revision, h)
		if err != nil {
			return err
		}
		if is.Revision != want.Revision || is.Keys != int64(want.Keys) {
			return &hostError{h.Name, fmt.Errorf("%s is at revision %d with %d keys, and the snapshot at %d with %d", h.Name, is.Revision, is.Keys, want.Revision, want.Keys)}
		}
		hashes[is.hash] = h.Name
	}
	if len(hashes) > 1 {
		return fmt.Errorf("the members hash their keys differently: %v", hashes)
	}
	r.report(Note, "compare", "", fmt.Sprintf(outcome, want.Revision, want.Keys))
	return nil
}

// state is what a member has.
type state struct {
	Current
	hash uint32
}

// stateOf asks the first of some hosts whose member answers.
func (c *conversation) stateOf(ctx context.Context, revision int64, hosts ...*Host) (s state, err error) {
	err = c.until(ctx, "ask for the revision and the keys", func(ctx context.Context) error {
		failed := errNoMember
		for _, h := range hosts {
			if !knock(ctx, h, h.Want.Member.ClientURL) {
				continue
			}
			client, err := c.client(h, h.Want.Member.ClientURL)
			var got *clientv3.GetResponse
			if err == nil {
				got, err = client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
			}
			var hash *clientv3.HashKVResponse
			if err == nil {
				hash, err = client.HashKV(ctx, client.Endpoints()[0], revision)
			}
			if err != nil {
				failed = &hostError{h.Name, fmt.Errorf("%s: %w", h.Name, err)}
				continue
			}
			s = state{Current: Current{Member: h.Name, Revision: got.Header.Revision, Keys: got.Count}, hash: hash.Hash}
			return nil
		}
		return failed
	})
	return s, err
}

// Unseal lets the new members take writes.
func (a *Adopt) Unseal(ctx context.Context, r *Run) error {
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	if sealed, err := anySealed(ctx, r); err == nil && !sealed {
		r.sealed = false
		return nil
	}
	return a.unseal(ctx, r, c, "new")
}

// unseal lets the members take writes, the old or the new ones as is said.
func (a *Adopt) unseal(ctx context.Context, r *Run, c *conversation, which string) error {
	if err := c.setSeal(ctx, pb.AlarmRequest_DEACTIVATE); err != nil {
		return fmt.Errorf("have the %s members take writes: %w", which, err)
	}
	if err := c.until(ctx, "have every member take writes", func(ctx context.Context) error {
		sealed, err := anySealed(ctx, r)
		if err == nil && sealed {
			err = errors.New("one of them has yet to hear of it")
		}
		return err
	}); err != nil {
		return err
	}
	r.sealed = false
	sentence := "the " + which + " members take writes"
	if !a.sealedAt.IsZero() {
		a.Pause = time.Since(a.sealedAt)
		sentence += fmt.Sprintf("; for %v there were none", a.Pause.Round(10*time.Millisecond))
	}
	r.change("unseal", sentence)
	return nil
}

// anySealed says whether a member refuses writes; the error, that one does not
// answer.
func anySealed(ctx context.Context, r *Run) (bool, error) {
	for _, h := range r.Hosts {
		status, err := h.status(ctx)
		if err != nil {
			return false, err
		}
		if isSealed(status.Errors) {
			return true, nil
		}
	}
	return false, nil
}

// Finish records, before writes are taken, that the new members have proved
// themselves. There is no way back from here.
func (a *Adopt) Finish(ctx context.Context, h *Host) error {
	adoption := h.Facts.Adoption
	adoption.Done = true
	return writeAdoption(ctx, h, adoption, "recorded that the member was taken over")
}
