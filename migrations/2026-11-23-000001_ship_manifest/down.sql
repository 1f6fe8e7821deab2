DROP TABLE events, withheld_ports, instances, installation;
DROP FUNCTION refuse_change, notify_instance;
