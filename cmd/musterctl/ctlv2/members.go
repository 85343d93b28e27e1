package ctlv2

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/v2"
)

func joined(list []string) string { return strings.Join(list, ", ") }

func (s *session) memberCommands() cli.Command {
	return cli.Command{
		Name: "member", Usage: "member add, remove and list subcommands",
		Subcommands: []cli.Command{
			{Name: "list", Usage: "enumerate existing cluster members", ArgsUsage: " ", Action: s.onMembers(0, "No arguments accepted", s.memberList)},
			{Name: "add", Usage: "add a new member to the etcd cluster", ArgsUsage: "<name> <peerURL>", Action: s.onMembers(2, "Provide a name and a single member peerURL", s.memberAdd)},
			{Name: "remove", Usage: "remove an existing member from the etcd cluster", ArgsUsage: "<memberID>", Action: s.onMembers(1, "Provide a single member ID", s.memberRemove)},
			{
				Name: "update", Usage: "update an existing member in the etcd cluster", ArgsUsage: "<memberID> <peerURLs>",
				Action: s.onMembers(2, "Provide an ID and a list of comma separated peerURL (0xabcd http://example.com,http://example1.com)", s.memberUpdate),
			},
		},
	}
}

// onMembers is the action of a command with so many arguments.
func (s *session) onMembers(args int, hint string, do func(context.Context, client.MembersAPI, cli.Args) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() != args {
			return plain("%s", hint)
		}
		connected, err := s.connect(c)
		if err != nil {
			return err
		}
		ctx, cancel := s.total(c)
		defer cancel()
		return do(ctx, client.NewMembersAPI(connected), c.Args())
	}
}

func (s *session) memberList(ctx context.Context, api client.MembersAPI, _ cli.Args) error {
	members, err := api.List(ctx)
	if err != nil {
		return plain("%w", err)
	}
	leader, err := api.Leader(ctx)
	if err != nil {
		return plain("Failed to get leader:  %w", err)
	}
	for _, m := range members {
		if m.Name == "" {
			s.say("%s[unstarted]: peerURLs=%s\n", m.ID, strings.Join(m.PeerURLs, ","))
			continue
		}
		s.say("%s: name=%s peerURLs=%s clientURLs=%s isLeader=%v\n", m.ID, m.Name, strings.Join(m.PeerURLs, ","), strings.Join(m.ClientURLs, ","), m.ID == leader.ID)
	}
	return nil
}

func (s *session) memberAdd(ctx context.Context, api client.MembersAPI, args cli.Args) error {
	name := args.First()
	added, err := api.Add(ctx, args.Get(1))
	if err != nil {
		return plain("%w", err)
	}
	s.say("Added member named %s with ID %s to cluster\n", name, added.ID)
	members, err := api.List(ctx)
	if err != nil {
		return plain("%w", err)
	}
	var cluster []string
	for _, m := range members {
		if m.ID == added.ID {
			m.Name = name
		}
		for _, url := range m.PeerURLs {
			cluster = append(cluster, m.Name+"="+url)
		}
	}
	s.say("\nETCD_NAME=%q\nETCD_INITIAL_CLUSTER=%q\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n", name, strings.Join(cluster, ","))
	return nil
}

func (s *session) memberRemove(ctx context.Context, api client.MembersAPI, args cli.Args) error {
	id := args.First()
	members, err := api.List(ctx)
	if err != nil {
		return plain("Error while verifying ID against known members: %w", err)
	}
	for _, m := range members {
		if m.Name == id {
			fmt.Fprintf(s.Err, "Found a member named %s; if this is correct, please use its ID, eg:\n\tetcdctl member remove %s\n", m.Name, m.ID)
			fmt.Fprintf(s.Err, "For more details, read the documentation at https://github.com/etcd-io/etcd/blob/master/Documentation/runtime-configuration.md#remove-a-member\n\n")
		}
	}
	if !slices.ContainsFunc(members, func(m client.Member) bool { return m.ID == id }) {
		return plain("Couldn't find a member in the cluster with an ID of %s.", id)
	}
	if err := api.Remove(ctx, id); err != nil {
		return plain("Received an error trying to remove member %s: %w", id, err)
	}
	s.say("Removed member %s from cluster\n", id)
	return nil
}

func (s *session) memberUpdate(ctx context.Context, api client.MembersAPI, args cli.Args) error {
	id := args.First()
	if err := api.Update(ctx, id, strings.Split(args.Get(1), ",")); err != nil {
		return plain("%w", err)
	}
	s.say("Updated member with ID %s in cluster\n", id)
	return nil
}
